"""Common English misspellings that can only mean one word, each of them no word of its own."""

_TABLE = """
absence: absense abscence | accept: acept | acceptable: acceptible | access: acess | accessible: accessable
accidentally: accidentaly | accommodate: accomodate acommodate | accommodation: accomodation | accompany: accompny
accomplish: acomplish | according: acording | account: acount | accumulate: accummulate | accuracy: acuracy
accurate: acurate | achieve: acheive achive | achieved: acheived achived | achievement: acheivement
acknowledge: aknowledge acknowlege | acknowledgment: acknowlegment | acquaintance: aquaintance | acquire: aquire
acquired: aquired | acquisition: aquisition | across: accross | actually: actualy acutally
additional: addtional aditional additonal | address: adress adrress | addresses: adresses
advertisement: advertisment | aggregate: agregate | aggregation: agregation | aggressive: agressive
algorithm: algorithim algoritm algorythm alogrithm | algorithms: algoritms algorithims | allocate: alocate
allocation: alocation | allowed: alowed | almost: allmost | already: allready alredy | although: altough allthough
always: allways alwyas | amateur: amatuer | ambiguous: ambigous | among: amoung | amount: ammount
analysis: anaylsis analisys | analyze: analize | annual: anual | anonymous: anonymus annonymous
apparatus: aparatus | apparent: apparant aparent | apparently: apparantly aparently | appearance: appearence
appropriate: apropriate appropiate | approximately: aproximately approximatly
architecture: archetecture architechture | argument: arguement | arguments: arguements | artificial: artifical
assistance: assistence | associated: asociated | assume: asume | asynchronous: asyncronous asynchonous
attempt: atempt attemp | attribute: atribute | authentication: authentification autentication
automatically: automaticaly automaticly automatcially | auxiliary: auxillary
availability: availablity avaliability | available: avaliable availible avialable availabe | awkward: akward
basically: basicly basicaly | beautiful: beatiful | because: becuase beacuse becasue | becomes: becames
before: befor | beginning: begining beggining | behavior: behavoir | being: bieng | believe: beleive belive
believed: beleived | beneficial: benificial | benefit: benifit | benefits: benifits
between: beetween betwen bewteen | bureaucracy: beaurocracy | business: buisness bussiness busines
businesses: buisnesses | capabilities: capabilites | capability: capabilty | categories: catagories
category: catagory | certain: certian | certainly: certianly | changeable: changable | character: charactor
characteristic: charateristic | characters: charachters | choose: chosse | chosen: choosen
circumstance: circumstanse | collaborate: colaborate | collaboration: colaboration | colleague: collegue
colleagues: collegues | combination: combinaton | coming: comming | commission: comission commision
commit: committ comit | commitment: committment | committed: commited comitted | committee: commitee comittee
communicate: comunicate | communication: comunication communciation | community: comunity | companies: companys
comparison: comparision | compatibility: compatability | compatible: compatable | competition: compitition
completely: completly compleatly | complexity: complexitity | component: componant | components: componants
computer: computor | concept: consept | condition: conditon | conditions: conditons
configuration: configuation configuraton | connection: conection | conscience: concience | conscious: concious
consensus: concensus | consequence: consequense | considered: consdiered | consistency: consistancy
consistent: consistant | consistently: consistantly | constant: constent | container: contianer
continue: continoue | continuous: continous | continuously: continously | control: controll
controversial: contraversial | convenience: convienience | convenient: convienient convinient
coordinate: cordinate | correctly: correcly | correspond: corespond | corresponding: coresponding corrosponding
criticism: critisism | criticize: critisize | currently: currenlty curently | decision: desicion decison
decisions: desicions | definite: definate | definitely: definately definatly definitly defiantely
definition: defintion definiton | dependencies: dependancies | dependency: dependancy | deploy: depoly
deployment: deployement | describe: discribe | description: desciption | desirable: desireable | despite: dispite
destination: destinaton | determine: determin | develop: develope | developed: developped | developer: devloper
development: developement devlopment developpment | difference: diffrence differnce
differences: diffrences differnces | different: diffrent differnt diferent | difficult: dificult
difficulty: dificulty | dilemma: dilema | directly: direclty | disappear: dissapear disapear
disappoint: dissapoint disapoint | disappointed: dissapointed | discipline: disipline | discussion: discusion
distributed: distibuted distrubuted | document: docuemnt | documentation: documention documentaion
doesn't: dosen't doens't | during: durring | easily: easilly | effect: efect | effective: efective
efficiency: effeciency efficency | efficient: effecient efficent | efficiently: effeciently efficently
eighth: eigth | either: eiter | eliminate: elimanate | embarrass: embarass | embarrassing: embarassing
encryption: encyrption | enough: enought | ensure: ensuer | entirely: entirly
environment: enviroment enviornment environement envrionment | environmental: enviromental
environments: enviroments enviornments | equipment: equiptment | equivalent: equivelant equivilent
especially: especialy espescially expecially | essential: esential essencial | essentially: essentialy
eventually: eventualy | every: evrey | evidence: evidance | exaggerate: exagerate | example: exmaple exampel
examples: exmaples | exceed: excede | excellent: excelent | except: excpet | exception: excpetion
excessive: exessive | execute: excute | execution: excecution | exercise: excercise exersise | existence: existance
existing: exisiting | expect: expct | expensive: expencive | experience: experiance expierence
experienced: experianced | experiment: experiement | explanation: explaination | expression: expresion
extension: extention | extensions: extentions | extremely: extremly | facilitate: faciliate | familiar: familar
fascinating: facinating | feasible: feasable | february: febuary | finally: finaly | flexible: flexable
following: follwing folowing | foreign: foriegn | formatting: formating | forty: fourty | forward: foward
frequency: frequancy | friend: freind | friends: freinds | fulfill: fullfill | function: funtion fucntion
functionality: functionalty funtionality | functions: funtions fucntions | fundamental: fundemental
further: furthur | gauge: guage | generally: generaly | generate: genrate | generated: genrated
governance: governence | government: goverment | gradually: gradualy | grammar: grammer | grateful: greatful
guarantee: garantee guarentee garuntee | guaranteed: guarenteed garanteed | guarantees: guarentees
guidance: guidence | handled: handeled | happened: happend | harass: harrass | having: haveing
height: heigth hieght | hierarchy: heirarchy hierachy | however: howerver | humorous: humourous
hypocrisy: hypocracy | identical: indentical | identify: indentify | immediate: imediate
immediately: immediatly imediately immediatelly | implement: impliment
implementation: implementaion implimentation | implemented: implimented | importance: importence
important: importent imporant | improve: imporve | improvement: improvment | improvements: improvments
incidentally: incidently | include: inlcude | including: inlcuding | increase: increse | incredible: incredable
independence: independance | independent: independant indepedent | independently: independantly
indispensable: indispensible | individual: indivdual | influence: influance | information: infomation informaton
infrastructure: infrastucture | initial: intial | initialize: intialize | initially: intially
inoculate: innoculate | installation: instalation | instance: instace | instances: instaces
integration: intergration | intelligence: inteligence intelligance | intelligent: inteligent | interest: intrest
interesting: intresting | interface: inteface | interfaces: intefaces | interpretation: interpertation
interrupt: interupt | interrupted: interupted | introduction: introducton | irrelevant: irrelevent
irresistible: irresistable | judgment: judgemnt | knowledge: knowlege knowlegde | knowledgeable: knowledgable
label: lable | language: langauge languge | languages: langauges languges | latency: latancy | leisure: liesure
length: lenght | lengths: lenghts | liaison: liason | libraries: libaries | library: libary librery
license: lisence | likely: likley | limitation: limitaton | maintain: mantain maintian | maintained: mantained
maintenance: maintainance maintenence | manageable: managable | management: managment | manually: manualy
marketing: marketting | mathematics: mathmatics | maximum: maxium | mechanism: mechanisim | medicine: medecine
medieval: medeival | memory: memmory | mention: mentoin | message: mesage | messages: mesages
millennium: millenium | minimum: minumum | miscellaneous: miscelaneous | mischievous: mischievious
misspell: mispell | misspelled: mispelled | modification: modifcation | multiple: mulitple mutliple
naturally: naturaly | necessarily: necessarilly neccessarily necesarily | necessary: neccessary necesary neccesary
negotiate: negociate | neighbor: nieghbor | neither: niether | network: netowrk | networks: netowrks | ninety: ninty
ninth: nineth | normally: normaly | noticeable: noticable | object: obejct | objects: obejcts | obstacle: obsticle
obvious: obvios | obviously: obviosly | occasion: occassion ocassion | occasionally: occassionally occasionaly
occur: occurr ocurr | occurred: occured ocurred | occurrence: occurence occurance occurrance
occurrences: occurences occurances | occurring: occuring | occurs: occures | operation: operaton | opinion: opinon
opponent: oponent | opportunities: oppurtunities oportunities | opportunity: oppurtunity oportunity
opposite: oposite | optimization: optimizaton | organization: orgnization | original: orginal
originally: orginally | other: ohter | otherwise: otherwize | outperform: outpreform | overall: overal
overwhelming: overwelming | package: pacakge | parallel: paralell parrallel paralel parralel
parameter: paramter parmeter | parameters: paramters parmeters | particular: particuler
particularly: particularily particulary | pastime: pasttime | peculiar: perculiar | perceive: percieve
perceived: percieved | percentage: precentage | performance: performace performence | perhaps: prehaps
permanent: permanant | permission: permision | permissions: permisions | persistence: persistance
persistent: persistant | personnel: personell | perspective: perpective | phenomenon: phenomonon
physical: phisical | piece: peice | pieces: peices | platform: platfrom | playwright: playwrite | pleasant: plesant
point: piont | popular: populer | portuguese: portugese | position: postion | positions: postions
possess: posess | possession: posession | possibility: possiblity | possible: possable posible | possibly: possiblly
potential: potental | potentially: potentialy | practical: practicle | practically: practicly | precede: preceed
preceding: preceeding | predictable: predictible | preference: preferance | preferred: prefered
preferring: prefering | prejudice: predjudice | preparation: preperation | presence: presance | prevalent: prevelant
previous: previuos previos | previously: previosly previuosly | primarily: primarly | principle: principel
privacy: privicy | privilege: priviledge privelege privilige | privileges: priviledges priveleges
probably: probaly probly propably | problem: probelm | problems: probelms | procedure: proceedure | proceed: procede
process: proccess | processes: proccesses | processing: proccessing | professional: proffesional profesional
professor: proffesor profesor | program: progam | programming: programing | prominent: prominant
pronunciation: pronounciation | propagate: propogate | propagation: propogation | property: propery
protocol: protocoll | publish: publsih | purpose: purpouse | pursue: persue | pursuit: persuit | quality: qualtiy
quantity: quanity | question: questoin quesion | queue: queu | quickly: quickley | quite: qiute
realistic: realstic | really: realy | reasonable: resonable | receipt: reciept | receive: recieve receve
received: recieved receved | receiver: reciever | receives: recieves | receiving: recieving
recently: recenlty recentley | recognize: reconize | recommend: recomend reccommend reccomend
recommendation: recomendation reccomendation | recommendations: recomendations
recommended: recomended reccommended | reference: refrence referance | references: refrences | referred: refered
referring: refering | regular: reguler | relationship: relatioship | relevance: relevence
relevant: relevent revelant | reliability: reliabilty | reliable: relyable relaible | religious: religous
remember: rember | reminiscent: reminescent | remove: remvoe | repeat: repaet | repetition: repitition repetion
replacement: replacment | representation: represenation | representative: representitive | request: reqeust requst
requests: reqeusts requsts | require: requrie | required: requried | requirement: requirment
requirements: requirments | research: reserach | resilience: resiliance | resilient: resiliant
resistance: resistence | resource: resourse | resources: resourses | response: responce | responses: responces
responsibility: responsability responsibilty | responsible: responsable | restaurant: resturant restaraunt
result: reuslt | results: reuslts | retrieval: retreival | retrieve: retreive | rhythm: rythm rythym
ridiculous: rediculous | satellite: satelite | schedule: schedual | scheduled: schedualed | secretary: secratary
security: secuirty securty | seize: sieze | select: slect | sensible: sensable | sentence: sentance
sentences: sentances | separate: seperate | separated: seperated | separately: seperately | separation: seperation
sequence: sequense | serialize: serialze | server: sevrer | several: severel serveral | severely: severly
should: shoudl | shouldn't: should'nt | signature: signiture | significant: signifcant significent
significantly: signifcantly | similar: similiar simmilar | similarly: similiarly | simple: simpel
simultaneous: simultanous | simultaneously: simultanously | since: sicne | sincerely: sincerly
situation: situtation | software: sofware | solution: soltuion | solutions: soltuions | some: smoe | source: soruce
sources: soruces | specific: specfic | specifically: specificly specificaly | specified: specifed | speech: speach
stability: stabilty | standard: standart | statement: statment | statements: statments | strategy: stratagy
strength: strenght | structure: struture strucutre | subscription: subscribtion | subsequent: subsequant
substantial: substancial | substitute: subsitute | subtle: suttle | succeed: succede | success: sucess succes
successful: succesful sucessful successfull sucesful | successfully: succesfully sucessfully successfuly
sufficient: sufficent | suggestion: sugestion | summary: sumary | superintendent: superintendant
supersede: supercede | supersedes: supercedes | support: suport suppport | supported: suported | supposed: suposed
suppress: supress | suppressed: supressed | surprise: suprise | surprised: suprised | surprising: suprising
surprisingly: suprisingly | surrounding: surounding | surveillance: surveilance | susceptible: suseptible
synchronization: syncronization | synchronize: syncronize | synchronous: syncronous | synthesis: sythesis
system: sytem systme | systems: sytems systmes | technical: techincal | technique: techinque
techniques: techinques | technology: technolgy | temperature: temperture | temporary: temporay temperary
tendency: tendancy | than: thna | that: taht htat | the: teh hte | their: thier | themselves: themselfs | then: tehn
these: theese | they: tehy | things: thigns | think: thikn | third: thrid | this: tihs htis | thorough: thourough
thoroughly: thouroughly | thought: thougt | threshold: threshhold | through: throught thorugh
throughput: throughtput | together: togehter | tomorrow: tommorow tommorrow | tongue: tounge | toward: towrad
tragedy: tradgedy | transaction: transacton | transfer: tranfer | transferred: transfered
transferring: transfering | translation: transaltion | transparent: transparant | truly: truely | twelfth: twelth
typical: typcial | typically: typicaly | tyranny: tyrany | unanimous: unanimus | unavailable: unavaliable
understand: undestand | unexpected: unexpeced | unfortunately: unfortunatly unfortunatley | unique: uniqe
unnecessary: unneccessary unecessary unnecesary | until: untill | unusual: unusal | update: udpate
updated: udpated | upper: uper | usage: useage | useful: usefull | using: useing | usually: usualy
utilization: utlization | vacuum: vaccum vacume | validation: validaton | valuable: valueable | value: vlaue
values: vlaues | variable: varible | variables: varibles | various: vairous | vehicle: vehical
verification: verfication | version: verison | versions: verisons | vertical: verticle | very: vrey
vicious: viscious | visible: visable | volume: volumn | vulnerability: vulnerabilty | vulnerable: vunerable
weird: wierd | welcome: wellcome | whether: wheter | which: whcih wich | while: whiel | whole: hwole
willful: wilfull | with: wiht | without: wihtout witout | woman: womna | work: wrok | working: wokring
world: wrold | would: woudl | wouldn't: would'nt | write: wirte | writing: writting wirting | written: writen
yield: yeild | yields: yeilds | your: yuor | zealous: zelous
"""


def corrections() -> dict[str, str]:
    """Misspelling to word, in lower case."""
    entries = (entry.partition(": ") for entry in _TABLE.strip().replace("\n", " | ").split(" | "))
    return {wrong: right for right, _, wrongs in entries for wrong in wrongs.split()}
